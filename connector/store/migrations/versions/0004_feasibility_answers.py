"""Answers to feasibility questions."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feasibility_answers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("asked", sa.String(length=64), nullable=False),
        sa.Column("query_id", sa.String(length=64), nullable=False),
        sa.Column("permit_id", sa.String(length=200), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("view", sa.JSON(), nullable=False),
        sa.Column("epsilon", sa.Double(), nullable=False),
        sa.Column("delta", sa.Double(), nullable=False),
        sa.Column("noise_multiplier", sa.Double(), nullable=False),
        sa.Column("smallest_cell", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=True),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feasibility_answers")),
        sa.UniqueConstraint("query_id", name=op.f("uq_feasibility_answers_query_id")),
    )
    op.create_index(op.f("ix_feasibility_answers_asked"), "feasibility_answers", ["asked"], unique=False)
    op.create_index(op.f("ix_feasibility_answers_permit_id"), "feasibility_answers", ["permit_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_feasibility_answers_permit_id"), "feasibility_answers")
    op.drop_index(op.f("ix_feasibility_answers_asked"), "feasibility_answers")
    op.drop_table("feasibility_answers")
