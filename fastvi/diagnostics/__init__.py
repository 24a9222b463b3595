"""What importance weights say about the bound that they give."""
