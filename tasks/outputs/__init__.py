"""What a run leaves for people: tables, report, history."""
