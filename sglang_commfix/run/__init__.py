"""What a server executes, with the gate and the modules beside this folder, and nothing else."""
