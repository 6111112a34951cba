"""What both servers stand on; knows neither."""
