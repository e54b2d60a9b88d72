from .compare import compare_revisions as compare_revisions
from .compare import comparison_frame as comparison_frame
from .folds import average_folds as average_folds
from .page import write_comparison as write_comparison
from .trace import trace_image as trace_image
from .trace import verify_image as verify_image
