"""Instance encoders f that are trained with the model."""
