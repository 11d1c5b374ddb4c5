"""The methods that ship with the program: specs.py has their settings, each other file one method."""
