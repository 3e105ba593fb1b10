"""Speed against peers, side by side, with the method written down. Tests are never timed; timing lives here."""
