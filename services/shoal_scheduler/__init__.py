"""The scheduler: owns a cell's rollouts. Hears the rollout log; says outcomes, and what placement shall do."""
