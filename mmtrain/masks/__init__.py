"""What subtasks keep of a network: banks of masks, subtasks, their sampling and objective."""
