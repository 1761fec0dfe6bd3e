"""``supervisord-py convert``: configurations of other supervisors as unit files."""
