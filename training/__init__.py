"""Training scripts: `em.py` trains the stages on the auxiliary set, `deploy.py` uses them on a target set."""
