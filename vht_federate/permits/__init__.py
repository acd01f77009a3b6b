"""What a hospital, a coordinator and an auditor ask of a permit before they act on it."""
