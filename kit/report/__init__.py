"""Results told to people: a page with charts, Markdown, CSV, and the number formats they share with the terminal."""
