"""From raw media to arrays that training reads."""
