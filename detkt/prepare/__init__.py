"""Data sets before training: downloaded, unpacked, checked. No batch ever passes through here."""
