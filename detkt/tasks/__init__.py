"""Tasks: how knowledge is obtained from a detector or a classifier."""
