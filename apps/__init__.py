"""What people touch: the command line and the page. They call the library and render; they decide nothing."""
