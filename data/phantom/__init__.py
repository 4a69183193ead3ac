"""Built-in sample data, drawn: chest radiographs and chest CT volumes."""
