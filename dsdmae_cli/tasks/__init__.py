"""What the program itself trains from labels."""
