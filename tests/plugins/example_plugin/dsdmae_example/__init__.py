"""Example plugins for dsdmae: specs.py declares them; mixer.py, gratings.py, table.py and colour.py are the real things."""
