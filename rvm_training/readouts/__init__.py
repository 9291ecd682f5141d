"""Training of readouts: clips with truth, what each task learns from them, and how it is measured."""
