"""What happens between axolotl handing over a run and the trained model: what is minimised, and how."""
