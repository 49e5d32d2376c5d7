"""What a run is asked: questions, prompts, and tables that other systems wrote."""
