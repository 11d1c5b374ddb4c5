"""What training leaves and people pass on: encoders, classifiers, denoisers and their files."""
