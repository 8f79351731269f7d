"""What a trained model has made of the rewards' distributions: numbers, words, figures, a page."""
