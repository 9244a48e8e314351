"""What every room uses: errors, files, random numbers, and the software's versions."""
