"""A speech corpus made from nothing but text: voices, phones with times, articulation, landmarks."""
