"""From evaluate artifacts to one page: collect the numbers, say what they show, draw them, write them."""
