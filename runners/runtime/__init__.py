"""What every process of a run needs: its device, its environment, its task, its journal."""
