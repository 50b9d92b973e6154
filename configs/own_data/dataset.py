# What to edit: your data, and what training starts from. The other files of this folder derive
# everything else from it. docs/own_data.md goes through it.

# In the order of the categories in the annotation file. A single one needs a comma: ('cat',).
classes = ('cat', 'dog')

# Annotations in COCO format. Paths of annotations and images are relative to `folder`, and that
# is relative to where you type the commands.
folder = 'data/own/'
train_annotations = 'annotations/train.json'
train_images = 'train/'
val_annotations = 'annotations/val.json'
val_images = 'val/'

# One of:
# - 'torchvision://resnet50': ImageNet weights of the plain backbone, downloaded. Kernels are cut
#   into cells.
# - a file or URL: a detector or classifier, of mmkw or plain, such as MMDetection's Mask R-CNN.
#   The more of it fits, the better. docs/own_data.md says how to start from a plain backbone.
# - None: random weights. That takes much more data and time.
start = 'torchvision://resnet50'

epochs = 12
# On one GPU. At least 2, see `train_dataloader.batch_size=1` in docs/troubleshooting.md.
batch_size = 2
# Height and width that images are scaled to fit in. Less is faster.
image_size = (1333, 800)
