"""Accounts of patients by participation, and spends outside of visits."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=200), nullable=False),
        sa.Column("permit_id", sa.String(length=200), nullable=True),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reserved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queries")),
    )
    op.create_index(op.f("ix_queries_dataset_id"), "queries", ["dataset_id"], unique=False)
    op.create_index(op.f("ix_queries_permit_id"), "queries", ["permit_id"], unique=False)
    op.create_index(op.f("ix_queries_state"), "queries", ["state"], unique=False)
    op.create_table(
        "participation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("subjects", sa.LargeBinary(), nullable=False),
        sa.Column("group_numbers", sa.LargeBinary(), nullable=False),
        sa.Column("histories", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_participation")),
    )


def downgrade() -> None:
    op.drop_table("participation")
    op.drop_index(op.f("ix_queries_state"), "queries")
    op.drop_index(op.f("ix_queries_permit_id"), "queries")
    op.drop_index(op.f("ix_queries_dataset_id"), "queries")
    op.drop_table("queries")
