"""Tables of PASCAL-Context and PASCAL-Part that the published readers share.

Derived from pascal_part.json, context_classes.json and nyu_classes.json in data/db_info of
github.com/SimonVandenhende/Multi-Task-Learning-PyTorch and from the six-part table of its reader, which are
based on Maninis, Radosavovic, Kokkinos: Attentive single-tasking of multiple tasks, CVPR 2019.
"""

PERSON = 15
"""`class_ind` of people in PASCAL-Part: the position of "person" in VOC's list of classes."""

# Part -> class of the task human_parts.
HUMAN_PARTS = {
    "hair": 1, "head": 1, "lear": 1, "rear": 1, "lebrow": 1, "rebrow": 1, "leye": 1, "reye": 1, "mouth": 1,
    "nose": 1, "torso": 2, "neck": 2, "luarm": 3, "ruarm": 3, "llarm": 4, "rlarm": 4, "lhand": 4, "rhand": 4,
    "luleg": 5, "ruleg": 5, "llleg": 6, "rlleg": 6, "lfoot": 6, "rfoot": 6,
}  # fmt: skip

CONTEXT_CLASSES = 459
"""Number of classes of PASCAL-Context, which counts from 1; 0 means unannotated."""

# The 170 classes whose pixels have normals. The network that predicted the normals was trained only on
# NYUD-v2, so these are the classes with the name of one of NYUD-v2's 894, except "unknown" and tvmonitor.
WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53,
    55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111,
    113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191,
    193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246,
    250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292,
    293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355,
    357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419,
    421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip
