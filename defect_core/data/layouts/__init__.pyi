from .ingest import ingest_source as ingest_source
from .options import LAYOUTS as LAYOUTS
from .options import LayoutOptions as LayoutOptions
from .options import SourceItem as SourceItem
from .options import check_options as check_options
from .read import read_layout as read_layout
from .remote import is_url as is_url
from .remote import open_source as open_source
