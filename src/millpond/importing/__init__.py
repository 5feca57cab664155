"""Reading the stores of other cache servers, so that what they hold can move in."""
