"""foleybox in a browser: the page (static files), and the server that renders for it."""
