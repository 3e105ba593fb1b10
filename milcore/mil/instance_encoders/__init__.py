"""f: the instance encoders that are trained with the model."""
