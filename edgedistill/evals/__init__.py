"""Quality of teacher, students and artifacts on held-out items."""
