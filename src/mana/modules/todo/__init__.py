"""To-do: tasks with a due day and a priority."""
