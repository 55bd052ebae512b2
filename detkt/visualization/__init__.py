"""What distillation changed: `matching` and `tables` (who found what), `drawing` and `curves` (pictures of it)."""
