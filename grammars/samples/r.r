# Smoothing and outliers of daily measurements, by station.

#' Moving average with a window that shrinks at both ends.
#'
#' @param x numeric vector, may hold NA
#' @param width odd number of values in the window
moving_average <- function(x, width = 7L) {
  stopifnot(is.numeric(x), width %% 2 == 1)
  half <- width %/% 2
  n <- length(x)
  result <- numeric(n)
  for (i in seq_len(n)) {
    window <- x[max(1, i - half):min(n, i + half)]
    result[i] <- mean(window, na.rm = TRUE)
  }
  result
}

#' Marks values that lie far from the median, in units of the median absolute deviation.
is_outlier <- function(x, threshold = 3.5) {
  center <- median(x, na.rm = TRUE)
  spread <- mad(x, na.rm = TRUE)
  if (spread == 0) {
    return(rep(FALSE, length(x)))
  }
  !is.na(x) & abs(x - center) / spread > threshold
}

read_measurements <- function(path) {
  data <- read.csv(path, stringsAsFactors = FALSE)
  missing_columns <- setdiff(c("station", "date", "value"), names(data))
  if (length(missing_columns) > 0) {
    stop("columns are missing in ", path, ": ", paste(missing_columns, collapse = ", "))
  }
  data$date <- as.Date(data$date, format = "%Y-%m-%d")
  data[order(data$station, data$date), ]
}

summarise_station <- function(rows) {
  residual <- rows$value - moving_average(rows$value)
  outlier <- is_outlier(residual)
  data.frame(
    station = rows$station[1],
    days = nrow(rows),
    mean = round(mean(rows$value[!outlier], na.rm = TRUE), 2),
    outliers = sum(outlier),
    trend = unname(coef(lm(value ~ as.numeric(date), data = rows[!outlier, ]))[2])
  )
}

summarise_all <- function(data) {
  by_station <- split(data, data$station)
  summaries <- lapply(by_station, summarise_station)
  result <- do.call(rbind, summaries)
  rownames(result) <- NULL
  result[order(-result$outliers), ]
}

plot_station <- function(data, station) {
  rows <- subset(data, data$station == station)
  plot(rows$date, rows$value, type = "p", pch = 16, col = "grey60", xlab = "date", ylab = "value", main = station)
  lines(rows$date, moving_average(rows$value), lwd = 2)
  outlier <- is_outlier(rows$value - moving_average(rows$value))
  points(rows$date[outlier], rows$value[outlier], pch = 1, cex = 2, col = "red")
  invisible(sum(outlier))
}

main <- function(args = commandArgs(trailingOnly = TRUE)) {
  if (length(args) != 1) {
    cat("usage: Rscript measurements.r FILE.csv\n")
    quit(status = 2)
  }
  data <- read_measurements(args[[1]])
  print(summarise_all(data), digits = 3)
}

if (!interactive()) {
  main()
}
