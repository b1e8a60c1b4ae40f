"""Models as they come: where their units lie, how they are loaded, fed and looked into."""
