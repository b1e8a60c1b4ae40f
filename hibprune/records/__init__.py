"""What the steps hand to each other: frozen records that go to JSON and back unchanged."""
