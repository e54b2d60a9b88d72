from .render import DEMO_PRODUCTS as DEMO_PRODUCTS
from .render import DemoImage as DemoImage
from .render import demo_defects as demo_defects
from .render import render_demo_image as render_demo_image
from .render import write_demo_product as write_demo_product
