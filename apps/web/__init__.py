"""`kit web`: a bundle as a page of static files, which runs the model in the browser of whoever opens it."""
