"""The commands of ``logsnr``: command NAME is the function NAME of the module NAME.

A module has the options of its command (those of pipelines are in `pipeline_options`) and what is
printed. What computes is imported when the command runs, so that ``--help`` answers at once.
"""
