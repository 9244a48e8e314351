"""The program: what `python run_dat.py` does, from the settings to the last file."""
