"""What distillation changed: `judging`, `matching`, `tables` (who found what), `drawing`, `curves` (pictures of it)."""
