"""What a person looks at: pictures, pages and tables of text."""
