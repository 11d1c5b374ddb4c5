"""Settings: models.py says what there is, load.py gathers values from everywhere, describe.py writes them down."""
