"""Problems with known answers, made from a seed."""
