"""What a model's answers are worth: measures, calibration, reports."""
