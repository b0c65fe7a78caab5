"""The engines that can answer, one file each, behind one interface (`base`)."""
